"""How numbers are written on the page, in the card and in the figures, so that all three agree.

Every function takes `None` and non-finite values as well: an evaluation that did not run, or a loss that
overflowed, is named in words instead of ending the report.
"""

import math
from collections.abc import Sequence

MISSING = "not measured"
NOT_FINITE = "not finite"
MINUS = "\u2212"
TIMES = "\u00d7"
SPACE = "\u202f"  # narrow no-break space between a number and its unit

_STEPS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_FILE_STEPS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


def _exponent(text: str) -> str:
    """Write `2.5e+13` as `2.5e13`."""
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa.rstrip('.')}e{int(exponent)}"


def _word_for(value: float | None) -> str | None:
    """The words that stand for a value which cannot be written as a number, or None where it can."""
    if value is None:
        return MISSING
    return None if math.isfinite(value) else NOT_FINITE


def significant(value: float | None, digits: int = 4) -> str:
    """Write with a fixed number of significant digits, trailing zeros kept: 68.6 becomes `68.60`."""
    return _word_for(value) or _exponent(f"{value:#.{digits}g}").rstrip(".")


def perplexity(value: float | None) -> str:
    """Perplexities from a good model's to a broken one's: `15.06`, `361.2`, `12,345`, `2.4e6`; null was not finite."""
    if value is None or not math.isfinite(value):
        return NOT_FINITE
    if value < 99.995:
        return f"{value:.2f}"
    if value < 999.95:
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 99_999.5 else _exponent(f"{value:.1e}")


def percent(fraction: float | None) -> str:
    """A share as whole per cent, told from all and from nothing: `93 %`, `over 99 %`, `under 1 %`."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    if 0 < fraction < 0.005:
        return f"under 1{SPACE}%"
    if 0.995 <= fraction < 1:
        return f"over 99{SPACE}%"
    return f"{100 * fraction:.0f}{SPACE}%"


def parameters(count: int | None) -> str:
    """Parameters as `134.5 M`; four digits from a thousand million on: `6.738 B`."""
    word = _word_for(count)
    if word:
        return word
    return f"{count / 1e9:.3f}{SPACE}B" if count >= 999_950_000 else f"{count / 1e6:.1f}{SPACE}M"


def tokens(count: int | None) -> str:
    """Tokens to three significant digits with a unit: 40960 becomes `41 k`, 150e9 becomes `150 B`."""
    word = _word_for(count)
    if word:
        return word
    rounded = float(f"{count:.3g}")
    for size, unit in _STEPS:
        if rounded >= size:
            return f"{rounded / size:.3g}{SPACE}{unit}"
    return f"{rounded:.0f}"


def flops(count: float | None) -> str:
    """Floating-point operations as `2.5e13`."""
    return _word_for(count) or _exponent(f"{count:.1e}")


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units: `8.30 s`, `12.9 s`, `4 min 05 s`, `3 h 20 min`; under a second in ms."""
    word = _word_for(seconds)
    if word:
        return word
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}{SPACE}ms"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f}{SPACE}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}{SPACE}h {minutes % 60:02d}{SPACE}min"


def memory(size: int | None) -> str:
    """Bytes in binary units: `512.0 MiB`, `13.2 GiB`."""
    word = _word_for(size)
    if word:
        return word
    return f"{size / 2**30:.1f}{SPACE}GiB" if size >= 2**30 else f"{size / 2**20:.1f}{SPACE}MiB"


def file_size(size: int | None) -> str:
    """Bytes of files in decimal units, as the Hub and disks count them: `626 kB`, `269 MB`, `13.5 GB`."""
    word = _word_for(size)
    if word:
        return word
    scale, unit = next(((scale, unit) for scale, unit in _FILE_STEPS if size >= 0.9995 * scale), (1e3, "kB"))
    return f"{float(f'{size / scale:.3g}'):g}{SPACE}{unit}"


def between(interval: tuple[float, float] | None, digits: int = 3) -> str:
    """An interval as `21.5 to 22.7`; empty where there is none."""
    return "" if interval is None else " to ".join(significant(end, digits) for end in interval)


def change(value: float | None, reference: float | None) -> str:
    """Change against a reference in per cent, with its sign; empty where either number is missing."""
    if _word_for(value) or _word_for(reference) or not reference:
        return ""
    percent = 100 * (value / reference - 1)
    if abs(percent) < 0.05:
        return "same"
    return f"{'+' if percent > 0 else MINUS}{abs(percent):.1f}{SPACE}%"


def ratio(value: float | None, reference: float | None) -> str:
    """Value over reference as a factor; empty where either number is missing."""
    if _word_for(value) or _word_for(reference) or not reference:
        return ""
    return f"{TIMES}{SPACE}{significant(value / reference, 3)}"


def block_list(indices: list[int]) -> str:
    """Block indices in rising order, runs of three and more joined: `4, 9-12, 20`."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [f"{run[0]}\u2013{run[-1]}" if len(run) > 2 else ", ".join(str(index) for index in run) for run in runs]
    return ", ".join(parts) if parts else "none"


def listed(parts: Sequence[str], comma: str = ", ") -> str:
    """`a`, `a and b`, `a, b and c`; parts that hold commas themselves stand between semicolons."""
    if comma != ", " and len(parts) > 1:
        return comma.join([*parts[:-1], f"and {parts[-1]}"])
    return " and ".join(filter(None, [comma.join(parts[:-1]), parts[-1]])) if parts else ""
