# Archives out of an object store, each into a new folder.


include: "common.smk"


require("store", optional=("provider", "archives", "archives_dir"))


def stored_archives():
    return names_stored(f"{config['store']}/{{name}}.zip")


def refuse_if_here(name):
    """Never in the place of an archive that is here, which Snakemake would begin to delete."""
    folder = Path(ARCHIVES_DIR, name)
    if folder.is_dir() and any(folder.iterdir()):
        refuse(f"{folder}: there already; move it away, or fetch into another folder (archives_dir)")
    return name


NAMES = [refuse_if_here(name) for name in named_archives(stored_archives)] if workflow.is_main_process else []


rule fetch_archives:
    input:
        [layout.manifest(f"{ARCHIVES_DIR}/{name}") for name in NAMES],


# Without params: Snakemake notes them of the manifest, and the workflow's own rule has none.
rule fetch_archive:
    input:
        stored(f"{config['store']}/{{name}}.zip"),
    output:
        layout.manifest(f"{ARCHIVES_DIR}/{{name}}"),
    wildcard_constraints:
        name="|".join(map(re.escape, NAMES)) or "[^/]+",
    shell:
        "python -m armarium unzip {input:q} {ARCHIVES_DIR:q}/{wildcards.name:q}"
