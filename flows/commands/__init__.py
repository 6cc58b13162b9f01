"""Groups of commands, each beside the options that they share; `flows.cli` puts them together."""
