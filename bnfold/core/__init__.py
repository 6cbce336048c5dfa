"""The gauge algebra: graphs, gauges, plans. numpy and nothing else."""
