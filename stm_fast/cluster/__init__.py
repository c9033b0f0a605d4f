"""Work that is shared out among the machines of a Ray cluster: which cluster, its workers, and the order of tasks."""
