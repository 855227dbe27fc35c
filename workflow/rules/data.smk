# From a dataset's list to splits, datalists and MAPS's data folders.


for folder, (spec, files) in SYNTHESIZED.items():

    rule:
        name:
            f"synthesize_{os.path.basename(folder)}"
        input:
            another_dataset(folder),
        output:
            listed=files[0],
            volumes=files[1:],
        log:
            layout.log(folder, "synthesize"),
        conda:
            "../../envs/data.yaml"
        params:
            spec=json_module.dumps(spec, sort_keys=True),
        message:
            "making the dataset {output.listed}"
        shell:
            "python -m armarium --log {log:q} synthesize {output.listed:q} {params.spec:q}"


rule check_data:
    input:
        source("data"),
        source("check"),
        source("test"),
        source("files"),
        made_list,
    output:
        layout.cases_tsv("{archive}"),
        layout.dataset_json("{archive}"),
        layout.data_record("{archive}"),
    log:
        layout.log("{archive}", "check_data"),
    group:
        PREPARED
    conda:
        "../../envs/data.yaml"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    message:
        "{wildcards.archive}: checking every case of the dataset"
    shell:
        "python -m armarium --log {log:q} check-data {wildcards.archive:q} --workers {threads}"


checkpoint split_data:
    input:
        unless_current("splits", lambda wildcards: [layout.cases_tsv(wildcards.archive)]),
    output:
        layout.splits_json("{archive}"),
    log:
        layout.log("{archive}", "split_data"),
    group:
        PREPARED
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=2000,
        runtime=20,
    message:
        "{wildcards.archive}: drawing the splits"
    shell:
        "python -m armarium --log {log:q} split-data {wildcards.archive:q}"


rule write_datalist:
    input:
        unless_kept(
            layout.datalist("{archive}", "{split}"), layout.splits_json("{archive}"), layout.dataset_json("{archive}")
        ),
    output:
        layout.datalist("{archive}", "{split}"),
    log:
        layout.log("{archive}", "write_datalist_{split}"),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} write-datalist {wildcards.archive:q} {wildcards.split}"


rule write_training_data:
    input:
        unless_kept(layout.training_data_tsv("{archive}"), layout.splits_json("{archive}")),
    output:
        layout.training_data_tsv("{archive}"),
    log:
        layout.log("{archive}", "write_training_data"),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write training-data {wildcards.archive:q} --inputs "$(printf "%s\\n" {input:q})"'


rule write_side_data:
    input:
        unless_kept(layout.side_data("{archive}", "{side}", "{split}"), layout.splits_json("{archive}")),
        source("train"),
        source("execution"),
    output:
        layout.side_data("{archive}", "{side}", "{split}"),
    log:
        layout.log("{archive}", "write_side_data_{side}_{split}"),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write side-data {wildcards.archive:q} {wildcards.side} {wildcards.split} --inputs "$(printf "%s\\n" {input:q})"'


rule write_group_data:
    input:
        unless_kept(layout.group_data("{archive}", "{group}"), layout.splits_json("{archive}")),
        source("train"),
        source("execution"),
    output:
        layout.group_data("{archive}", "{group}"),
    log:
        layout.log("{archive}", "write_group_data_{group}"),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write group-data {wildcards.archive:q} {wildcards.group} --inputs "$(printf "%s\\n" {input:q})"'
