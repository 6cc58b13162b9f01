"""Groups of commands, each beside the options that they share; `animl_pipeline.cli.main` puts them together."""
