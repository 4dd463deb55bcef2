"""From a profile, this machine and the user's settings to the settings a model runs with."""
