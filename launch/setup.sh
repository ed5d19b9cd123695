# shellcheck shell=bash
# Makes .venv in the project's root, installs regrow and what it needs, and puts it first on PATH.
#
#   source launch/setup.sh     from a script or a bash prompt: set up, then activate
#   bash launch/setup.sh       set up only
#
# Needed beforehand: bash, Python 3.11 or newer with venv, Python's headers, a C++ compiler. Nothing is written before
# they are all found. A second run finds .venv/setup.done as it would write it, and does nothing.
#
#   REGROW_PYTHON=/path/to/python3   the Python to use (else python3, python3.11 ... python3.14, the first that fits)
#   REGROW_TORCH=cpu|cuda            the build of torch (else cuda where nvidia-smi sees a GPU)

if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
    # Sourced. The work is done by a process of its own, so that nothing of it stays behind in this shell.
    bash "${BASH_SOURCE[0]}" || return
    VIRTUAL_ENV="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/.venv"
    [[ $PATH == "$VIRTUAL_ENV/bin:"* ]] || PATH="$VIRTUAL_ENV/bin:$PATH"
    export VIRTUAL_ENV PATH
    return 0
fi

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
venv=$root/.venv
log=$venv/setup.log
constraints=launch/constraints.txt

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# --- what must be here already -------------------------------------------------------------------------------------

new_enough() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Not the one in .venv, which may be active: it would be lost when .venv is made anew.
PATH=:$PATH:
while [[ $PATH == *":$venv/bin:"* ]]; do PATH=${PATH/":$venv/bin:"/:}; done
PATH=${PATH#:} PATH=${PATH%:}
candidates=(python3 python3.11 python3.12 python3.13 python3.14)
[[ -z ${REGROW_PYTHON:-} ]] || candidates=("$REGROW_PYTHON")
python=""
for candidate in "${candidates[@]}"; do
    found=$(command -v "$candidate" || true)
    if [[ -n $found && $found != "$venv"/* ]] && new_enough "$found"; then
        python=$found
        break
    fi
done

missing=() debian=() fedora=()
lacks() { # WHAT, its packages on Debian, on Fedora
    missing+=("  $1")
    read -ra words <<<"$2" && debian+=(${words[@]+"${words[@]}"})
    read -ra words <<<"$3" && fedora+=(${words[@]+"${words[@]}"})
}
if [[ -z $python && -n ${REGROW_PYTHON:-} ]]; then
    lacks "Python 3.11 or newer: REGROW_PYTHON=$REGROW_PYTHON is not one, or is in .venv" "" ""
elif [[ -z $python ]]; then
    lacks "Python 3.11 or newer, with its module venv and its headers (none of: ${candidates[*]})" \
        "python3 python3-venv python3-dev" "python3 python3-devel"
else
    name=${python##*/}
    [[ $name == python3* ]] || name=python3
    # One start of Python for all questions: this part runs every time.
    {
        read -r venv_module
        read -r header
        read -r python_is
        read -r files
    } < <("$python" -I - setup.cfg pyproject.toml "$constraints" <<'EOF'
import hashlib, importlib.util, os, sys, sysconfig

print("yes" if all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")) else "no")
header = os.path.join(sysconfig.get_path("include"), "Python.h")
print("yes" if os.path.exists(header) else header)
print(sys.version.split()[0], os.path.realpath(sys.executable))
digest = hashlib.sha256()
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        digest.update(hashlib.sha256(file.read()).digest())
print(digest.hexdigest())
EOF
    )
    [[ $venv_module == yes ]] || lacks "the modules venv and ensurepip of $python" "$name-venv" "$name"
    [[ $header == yes ]] || lacks "the headers of $python ($header)" "$name-dev" "$name-devel"
fi

candidates=(c++ g++ clang++)
[[ -z ${CXX:-} ]] || candidates=("${CXX%% *}")
compiler=""
for candidate in "${candidates[@]}"; do
    if compiler=$(command -v "$candidate"); then break; fi
done
[[ -n $compiler ]] ||
    lacks "a C++ compiler (none of: ${candidates[*]})" g++ gcc-c++

if ((${#missing[@]})); then
    fail "this machine lacks what regrow needs. Nothing was installed or changed. Missing:" "${missing[@]}" \
        ${debian[@]+"on Debian and Ubuntu: apt-get install ${debian[*]}"} \
        ${fedora[@]+"on Fedora:            dnf install ${fedora[*]}"} \
        "Then run this again. Another Python can be named: REGROW_PYTHON=/path/to/python3.12"
fi

case ${REGROW_TORCH:-auto} in
cpu | cuda) torch=$REGROW_TORCH ;;
auto) if nvidia-smi -L >/dev/null 2>&1; then torch=cuda; else torch=cpu; fi ;;
*) fail "REGROW_TORCH=$REGROW_TORCH: say cpu or cuda, or leave it unset" ;;
esac

# --- has it been done? ---------------------------------------------------------------------------------------------

# What a finished .venv was made for. Other files: install again, into it. Anything else: make it anew.
place="python $python_is
root $root
torch $torch"
wanted="$place
files $files"

finished() { [[ -x $venv/bin/python && -f $venv/setup.done && $(<"$venv/setup.done") == "$wanted" ]]; }

if finished; then exit 0; fi

if [[ -e $venv && ! -e $log && -n $(ls -A "$venv") ]]; then
    fail "$venv is there, but this script did not make it, so it is left alone." \
        "Move it away to have one made; or activate it, and run: pip install -c $constraints -e '.[dev,eval]'"
fi

# One at a time. The lock belongs to the open file, so it stays with this shell after Python, or flock, has ended.
mkdir -p .cache
exec 9>.cache/setup.lock
lock() { "$python" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_EX | $1)" 2>/dev/null; }
if ! lock fcntl.LOCK_NB; then
    say "another set-up of this folder is at work; waiting for it"
    lock 0 || say "this file system has no locks; going on without"
    if finished; then exit 0; fi
fi

# --- do it ---------------------------------------------------------------------------------------------------------

on_exit() {
    local status=$?
    if ((status)) && [[ -s $log ]]; then
        printf 'setup: stopped, nothing is marked as done. The end of %s:\n' "$log" >&2
        tail -n 25 "$log" | sed 's/^/    /' >&2
    fi
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

pip() {
    printf '\n$ pip %s\n' "$*" >>"$log"
    PIP_USER=0 "$venv/bin/python" -I -m pip --disable-pip-version-check "$@" >>"$log" 2>&1
}

started=$SECONDS
if [[ -f $venv/setup.done && $(<"$venv/setup.done") == "$place"$'\n'* ]]; then
    say "setup.cfg, pyproject.toml or $constraints changed: bringing .venv up to date"
    rm -f "$venv/setup.done"
    : >"$log"
else
    # Without its mark, .venv may hold half a package that pip takes for a whole one: never build on it.
    rm -rf .cache/venv.old.*
    [[ ! -e $venv ]] || mv "$venv" ".cache/venv.old.$$"
    say "making .venv with Python $python_is (log: .venv/setup.log)"
    mkdir "$venv"
    : >"$log"
    rm -rf ".cache/venv.old.$$"
    "$python" -I -m venv "$venv" >>"$log" 2>&1
    # Those who compile at run time (torch, DeepSpeed) call c++.
    [[ -n ${CXX:-} ]] || command -v c++ >/dev/null || ln -s "$compiler" "$venv/bin/c++"
fi

version=$(sed -n 's/^torch==//p' "$constraints")
say "installing torch $version for ${torch/cpu/the CPU}"
if [[ $torch == cuda ]]; then
    pip install -c "$constraints" "torch==$version"
elif pip install -c "$constraints" "torch==$version+cpu"; then
    :
elif say "pip's index has no CPU build of torch; asking uv for PyTorch's own" &&
    pip install -c "$constraints" uv &&
    printf '\n$ uv pip install torch==%s --torch-backend=cpu\n' "$version" >>"$log" &&
    "$venv/bin/uv" pip install --python "$venv/bin/python" -c "$constraints" "torch==$version" \
        --torch-backend=cpu >>"$log" 2>&1; then
    :
else
    say "WARNING: no CPU build of torch can be reached. Taking the default build, with its CUDA libraries:"
    say "WARNING: about 2.6 GB to download, and twice that or more on the disk. It runs on the CPU as well."
    pip install -c "$constraints" "torch==$version"
fi

say "installing regrow and the rest (a minute or two)"
pip install -c "$constraints" -e '.[dev,eval]'

printf '%s\n' "$wanted" >"$venv/setup.done.new"
mv "$venv/setup.done.new" "$venv/setup.done"
say "done in $((SECONDS - started)) s"
