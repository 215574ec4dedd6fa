"""What people would use instead: the same model and store behind other frameworks, in environments of their own."""
