"""What mixes units: all models' units of a space side by side, in groups or carried by a coupling."""
