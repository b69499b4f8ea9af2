"""Playing environments by hand: a chat format that people read and write, and a person as the policy."""
