"""tANS over exact wide deltas: an alphabet of values and bins, tables of 4,096 states, interleaved streams."""
