# What the archive says of itself: MAPS's configuration, MMAR's and the Bundle's faces, the manifest.

for what, (path, *parts) in ROOT_CONFIGS.items():

    rule:
        name:
            f"write_{what}"
        input:
            [source(part) for part in ("train", "execution", *parts)],
        output:
            path,
        log:
            layout.log("{archive}", f"write_{what}"),
        group:
            DESCRIBED
        conda:
            "../../envs/data.yaml"
        params:
            what=what,
        shell:
            'python -m armarium --log {log:q} write {params.what} {wildcards.archive:q} --inputs "$(printf "%s\\n" {input:q})"'


rule record_environment:
    output:
        layout.environment_files("{archive}"),
    log:
        layout.log("{archive}", "record_environment"),
    group:
        DESCRIBED
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m armarium --log {log:q} record-environment {wildcards.archive:q} {output:q} --rule record_environment"


rule record_conda_environment:
    input:
        if_recorded(layout.environment_files("{archive}", layout.CONDA_ENVIRONMENT)),
    output:
        layout.environment_files("{archive}", layout.CONDA_ENVIRONMENT),
    log:
        layout.log("{archive}", "record_conda_environment"),
    group:
        DESCRIBED
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m armarium --log {log:q} record-environment {wildcards.archive:q} {output:q} --rule record_conda_environment"


for of in layout.OTHER_ENVIRONMENTS:

    rule:
        name:
            f"record_{of}_environment"
        input:
            if_recorded(layout.environment_files("{archive}", (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT), of)),
        output:
            layout.environment_files("{archive}", (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT), of),
        log:
            layout.log("{archive}", f"record_{of}_environment"),
        group:
            DESCRIBED
        conda:
            f"../../envs/{of}.yaml"
        params:
            of=of,
        shell:
            "python -m armarium --log {log:q} record-environment {wildcards.archive:q} {output:q} --rule record_{params.of}_environment"


rule copy_lock_file:
    input:
        if_recorded(layout.environment_file("{archive}", "{lock}")),
    output:
        layout.environment_file("{archive}", "{lock}"),
    log:
        layout.log("{archive}", "copy_lock_file_{lock}"),
    wildcard_constraints:
        lock=LOCK,
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} record-environment {wildcards.archive:q} {output:q} --rule copy_lock_file"


rule write_summary:
    input:
        unless_kept(layout.summary_log("{archive}"), all_runs, all_evaluations, layout.splits_json("{archive}")),
        source("test"),
    output:
        layout.summary_log("{archive}"),
    log:
        layout.log("{archive}", "write_summary"),
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write summary {wildcards.archive:q} --inputs "$(printf "%s\\n" {input:q})"'


rule write_command:
    input:
        source("train"),
        unless_kept(layout.command("{archive}", "{command}"), layout.dataset_json("{archive}")),
    output:
        layout.command("{archive}", "{command}"),
    log:
        layout.log("{archive}", "write_command_{command}"),
    wildcard_constraints:
        command="|".join(layout.COMMANDS),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write command {wildcards.archive:q} {wildcards.command} --inputs "$(printf "%s\\n" {input:q})"'


rule write_log_config:
    output:
        layout.log_config("{archive}"),
    log:
        layout.log("{archive}", "write_log_config"),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write log-config {wildcards.archive:q} --inputs "$(printf "%s\\n" {input:q})"'


rule write_doc:
    input:
        source("train"),
        source("select"),
        source("test"),
        source("publish"),
        unless_kept(
            layout.doc("{archive}", "{doc}"),
            all_runs,
            all_evaluations,
            ensemble_of_card,
            layout.dataset_json("{archive}"),
            layout.splits_json("{archive}"),
        ),
    output:
        layout.doc("{archive}", "{doc}"),
    log:
        layout.log("{archive}", "write_doc_{doc}"),
    wildcard_constraints:
        doc="|".join(layout.DOCS),
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write doc {wildcards.archive:q} {wildcards.doc} --inputs "$(printf "%s\\n" {input:q})"'


rule write_licence:
    input:
        source("publish"),
        unless_kept(layout.licence("{archive}"), layout.dataset_json("{archive}")),
    output:
        layout.licence("{archive}"),
    log:
        layout.log("{archive}", "write_licence"),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write licence {wildcards.archive:q} --inputs "$(printf "%s\\n" {input:q})"'


rule write_bundle_config:
    input:
        source("train"),
        source("execution"),
        source("test"),
        source("publish"),
        unless_kept(layout.bundle_config("{archive}", "{name}"), layout.dataset_json("{archive}")),
    output:
        layout.bundle_config("{archive}", "{name}"),
    log:
        layout.log("{archive}", "write_bundle_config_{name}"),
    wildcard_constraints:
        name="|".join(layout.BUNDLE_CONFIGS),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        'python -m armarium --log {log:q} write bundle-config {wildcards.archive:q} {wildcards.name} --inputs "$(printf "%s\\n" {input:q})"'


rule copy_workflow:
    output:
        layout.workflow_copy("{archive}"),
    log:
        layout.log("{archive}", "copy_workflow"),
    group:
        DESCRIBED
    conda:
        "../../envs/data.yaml"
    shell:
        "python -m armarium --log {log:q} copy-workflow {wildcards.archive:q}"


rule write_manifest:
    input:
        unless_settled(artifacts),
        unless_settled(predictions),
        unless_settled(ensemble_predictions),
        unless_settled(further_models),
        unless_settled(configuration),
        unless_settled(missing_artifacts),
    output:
        layout.manifest("{archive}"),
    log:
        layout.log("{archive}", "write_manifest"),
    group:
        FINISHED
    conda:
        "../../envs/data.yaml"
    message:
        "{wildcards.archive}: writing the manifest"
    shell:
        "python -m armarium --log {log:q} write-manifest {wildcards.archive:q}"
