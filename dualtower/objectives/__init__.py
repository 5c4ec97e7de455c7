"""What a training minimizes: a module around the model, whose parts outside of it are pure functions.

`forward` runs inside DistributedDataParallel and autocast, on the rows of one rank; `loss` runs outside of both, in
float32, and joins the ranks. On any number of ranks the gradients are those of one process on the joined batch.
"""
