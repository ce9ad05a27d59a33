"""The language: graphs, the op table, labels, groups, spaces, configs and costs."""
