"""`farm bench`: every figure of this project, measured, with its claims."""
