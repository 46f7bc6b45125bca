"""Orders found by gradients or by a task: soft orders, labelled data, running again what changed."""
