"""freerun trains sequence models on the histories they will really see."""
