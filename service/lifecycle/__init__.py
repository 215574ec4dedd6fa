"""What serves, and how it changes while it serves: prepared beside the old in all processes, then switched in all."""
