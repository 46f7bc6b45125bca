"""What lies beside the tensors: configuration, side files, model card, names without folders."""
