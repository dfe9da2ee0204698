"""What a person sees and types: output, progress, chat, line editing, previews, units."""
