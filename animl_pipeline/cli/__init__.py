"""The command line. Each module holds one command or a group of commands; `animl_pipeline.cli.main` puts them together."""
