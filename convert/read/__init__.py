"""A directory in any known layout: its names, shapes and configuration, translated to the run form."""
