"""One run on several processes (ranks) under torchrun: the only room that knows torch.distributed."""
