"""Steps of tools/bake_makehuman_head.py: read the MakeHuman data, build the template, its charts and its bases."""
