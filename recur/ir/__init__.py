"""The intermediate representations, one file each: spec, core, normal, tile, plan."""
