"""What the command line can do, a module a verb; every heavy import is inside the verb that needs it."""
