# Complete archives into an object store, a zip each; again those whose manifest is newer.


include: "common.smk"


require("store", optional=("provider", "archives", "archives_dir"))


def complete_archives():
    return sorted(Path(path).parent.name for path in Path(ARCHIVES_DIR).glob(layout.manifest("*")))


rule push_archives:
    input:
        [stored(f"{config['store']}/{name}.zip") for name in named_archives(complete_archives)],


rule push_archive:
    input:
        layout.manifest(f"{ARCHIVES_DIR}/{{name}}"),
    output:
        stored(f"{config['store']}/{{name}}.zip"),
    wildcard_constraints:
        name="[^/]+",
    shell:
        "python -m armarium zip {ARCHIVES_DIR:q}/{wildcards.name:q} {output:q}"
