"""The model of `make demo` and `make serve`, and the programs that show it."""
