"""Small servers over trio_sse, one idea each; every file begins with the command that runs it."""
