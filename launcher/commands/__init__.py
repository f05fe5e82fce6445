"""The subcommands of `bundlerun`, a module each: `add_arguments(parser)`, `run(args) -> int`."""
