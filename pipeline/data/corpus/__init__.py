"""What a corpus holds: its shards, its tokens, what is held out, what is drawn, what is tokenised ahead."""
