"""The same run over several processes: `torch.distributed`, over Unix sockets on one machine (`lab.processes.mesh`), by gloo on several.

Worker w lives in process w // W, where W = N / P; a process holds the rows of its own workers and no others. All P processes
run the same loop and make the same calls in the same order. A mean is a sum over a process's own rows, then an all-reduce over
the processes *of the holders* alone: what two sites hold never travels to a third. What one call sends over the same processes
travels as one flat buffer. Every process writes the whole ledger, which follows from the layout; the first one evaluates,
keeps the events and writes the run folder.
"""
