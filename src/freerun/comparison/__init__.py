"""Many runs, compared: arms x seeds in processes, intervals, a verdict in a sentence."""
