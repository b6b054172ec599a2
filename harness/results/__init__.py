"""Files of a run on disk, and how they are read: rows, run folder, machine, baselines and series."""
