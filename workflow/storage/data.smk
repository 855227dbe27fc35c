# A dataset out of an object store, file by file; again those that are newer there.


include: "common.smk"


require("data", "data_root")


rule fetch_data:
    input:
        lambda wildcards: [f"{config['data_root']}/{name}" for name in names_stored(f"{config['data']}/{{name}}")],


rule fetch_file:
    input:
        stored(f"{config['data']}/{{name}}"),
    output:
        f"{config['data_root']}/{{name}}",
    wildcard_constraints:
        name=".+",
    shell:
        "cp -- {input:q} {output:q}"
