"""Views, loaders, schedules, checkpoints and the loop (torch)."""
