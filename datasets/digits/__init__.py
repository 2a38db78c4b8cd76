"""Moving MNIST: made on the fly, the published test sets, and the true simulator's futures."""
