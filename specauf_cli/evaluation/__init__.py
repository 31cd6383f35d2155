"""From prompts and a drafter to traces, and from traces to tau."""
