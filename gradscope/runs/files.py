"""What the files of a run are called. Importing the names loads nothing."""

STEPS_FILE = "steps.arrow"
PROBES_FILE = "probes.arrow"
HEADER_FILE = "run.json"
TRIALS_DIR = "trials"
RANKS_DIR = "ranks"
