"""From a spec file to a workload: model, data, loss, optimizer, plan. This side imports torch."""
