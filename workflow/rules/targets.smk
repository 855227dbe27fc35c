# What each job needs, and what a complete archive holds.


def synthesized():
    """The datasets that the configuration asks to make: list file -> what to make."""
    from armarium.synthesize import synthesized_files

    found = {}
    for section in config.get("archives", {}).values():
        spec = section["dataset"]["synthesize"]
        if spec:
            folder = os.path.join(config["data_root"], os.path.dirname(section["dataset"]["list"]))
            spec = {**spec, "task": section["dataset"]["task"]}
            found[os.path.normpath(folder)] = (
                spec,
                [os.path.normpath(f"{folder}/{f}") for f in synthesized_files(spec)],
            )
    return found


SYNTHESIZED = synthesized()


def unmade(folder):
    """Whether a dataset is to be made, or made again: not for its files' times, content decides on data."""
    from armarium.synthesize import is_synthesized

    return not told(is_synthesized, folder, SYNTHESIZED[folder][0])


def made_list(wildcards):
    """The dataset's files as inputs where a rule is to make them."""
    held = configured(wildcards.archive)
    if "list" not in held.spec["dataset"]:
        return []
    folder = os.path.normpath(os.path.join(held.data_root, os.path.dirname(held.spec["dataset"]["list"])))
    return SYNTHESIZED[folder][1] if folder in SYNTHESIZED and unmade(folder) else []


def another_dataset(folder):
    """Input function: a reason to make a dataset again that was made from another specification."""
    listed = SYNTHESIZED[folder][1][0]
    return lambda wildcards: [stamp(folder, "dataset", listed)] if os.path.exists(listed) and unmade(folder) else []


def training_needs(wildcards):
    """What must be there when training starts.

    MAPS's files are among it, so that the archive opens from the first training's start.
    """
    archive, split = wildcards.archive, wildcards.split
    return [
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        layout.architecture_log(archive),
        layout.environment_txt(archive),
        *layout.root_configs(archive),
        layout.training_data_tsv(archive),
        *(f for k in splits_of(archive) for side in layout.SIDES for f in layout.side_data(archive, side, k)),
    ]


def testing_needs(wildcards):
    return [
        layout.run_zip(wildcards.archive, wildcards.split),
        layout.splits_json(wildcards.archive),
        layout.cases_tsv(wildcards.archive),
        *layout.group_data(wildcards.archive, wildcards.group),
    ]


def exporting_needs(wildcards):
    return [layout.run_zip(wildcards.archive, wildcards.split), layout.dataset_json(wildcards.archive)]


def published_needs(wildcards):
    return [
        layout.published_ts(wildcards.archive),
        layout.splits_json(wildcards.archive),
        layout.cases_tsv(wildcards.archive),
    ]


def published_split(wildcards):
    return configured(wildcards.archive).spec["publish"]


def exported(archive):
    """Every selected checkpoint, and the published one."""
    return list(dict.fromkeys([*configured(archive).checkpoints, configured(archive).published_checkpoint]))


def published_run(wildcards):
    return layout.run_zip(wildcards.archive, published_split(wildcards))


def published_exports(wildcards):
    return layout.exports_zip(wildcards.archive, published_split(wildcards))


ROOT_CONFIGS = {
    "model": layout.model_json("{archive}"),
    "metrics": layout.metrics_json("{archive}"),
    "callbacks": layout.callbacks_json("{archive}"),
    "optimization": layout.optimization_json("{archive}"),
}


def all_runs(wildcards):
    return [layout.run_zip(wildcards.archive, k) for k in splits_of(wildcards.archive)]


def all_evaluations(wildcards):
    archive = wildcards.archive
    return [layout.evaluation_zip(archive, g, k) for g in configured(archive).groups for k in splits_of(archive)]


def split_artifacts(archive, split):
    optimizer = class_name(configured(archive).settings["optimizer"])
    folders = checkpoint_folders(archive, split)
    return [
        layout.run_zip(archive, split),
        layout.exports_zip(archive, split),
        layout.datalist(archive, split),
        *(f for side in layout.SIDES for f in layout.side_data(archive, side, split)),
        *layout.split_logs(archive, split),
        *layout.history_tables(archive, split),
        layout.learning_rates(archive, split, optimizer),
        *(f for d in folders for f in (layout.checkpoint_pt(d), layout.checkpoint_ts(d), *layout.checkpoint_tables(d))),
    ]


def group_artifacts(archive, group):
    results = [
        layout.result_dir(archive, group, k, c) for k in splits_of(archive) for c in configured(archive).checkpoints
    ]
    return [
        *layout.group_data(archive, group),
        *(layout.evaluation_zip(archive, group, k) for k in splits_of(archive)),
        *(f for r in results for f in (*layout.result_tables(r), layout.result_computational(r))),
    ]


MOST_CASES_LISTED = 1000


def predictions(wildcards):
    """Each case's segmentation, up to a thousand cases; all remain in the evaluation's zip."""
    archive = wildcards.archive
    held = configured(archive)
    if not held.spec["predictions"]:
        return []
    if held.task == "classification":
        return [layout.eval_probabilities(archive)]
    if not os.path.exists(layout.splits_json(archive)) and os.path.exists(layout.manifest(archive)):
        # Snakemake does not run a job again for a lost file while one of its inputs waits for a checkpoint.
        return listed_predictions(archive)
    from armarium.steps import published_cases

    checkpoints.split_data.get(archive=archive)
    cases = told(published_cases, archive)
    return [layout.eval_segmentation(archive, c) for c in cases] if len(cases) <= MOST_CASES_LISTED else []


def listed_predictions(archive):
    """The segmentations that the manifest names."""
    from armarium.manifest import read_manifest

    wanted = layout.eval_segmentation(archive, "*")
    return [f for f in (f"{archive}/{name}" for name in told(read_manifest, archive).files) if fnmatch(f, wanted)]


def artifacts(wildcards):
    """Everything that a complete archive holds, but the manifest."""
    a = wildcards.archive
    held = configured(a)
    dice = layout.eval_dice_tables(a) if held.task == "segmentation" else []
    return [
        layout.cases_tsv(a),
        layout.dataset_json(a),
        layout.splits_json(a),
        *layout.root_configs(a),
        layout.architecture_log(a),
        layout.nn_summary(a),
        layout.summary_log(a),
        *layout.environment_files(a, conda=USES_CONDA),
        layout.training_data_tsv(a),
        *(f for k in splits_of(a) for f in split_artifacts(a, k)),
        *(f for g in held.groups for f in group_artifacts(a, g)),
        layout.published_model(a),
        layout.published_final(a),
        layout.published_ts(a),
        layout.published_events(a),
        layout.train_stats(a),
        layout.eval_zip(a),
        layout.eval_metrics_csv(a),
        *dice,
        *(layout.command(a, c) for c in layout.COMMANDS),
        layout.log_config(a),
        *(layout.doc(a, d) for d in layout.DOCS),
        layout.licence(a),
        *(layout.bundle_config(a, n) for n in layout.BUNDLE_CONFIGS),
        layout.workflow_copy(a),
    ]


def configuration(wildcards):
    """The configuration files that the manifest names; DATA_ROOT's is left out, moving data makes nothing again."""
    archive, names = wildcards.archive, ("archive.json", *layout.MMAR_CONFIGS, "splits.json")
    rewritten = configured(archive).rewritten if workflow.dryrun else []
    files = [layout.mmar_config(archive, name) for name in names]
    return [
        stamp(archive, os.path.basename(f), f) if f in rewritten else f
        for f in files
        if f in rewritten or os.path.exists(f)
    ]


NOTICED = {}


def missing_artifacts(wildcards):
    """A reason to run where anything is lost: Snakemake leaves a lost input of a file that exists as it is.

    As first noticed: asked again after a checkpoint, when some of it is back, it is still a reason.
    """
    archive = wildcards.archive
    manifest = layout.manifest(archive)
    if archive not in NOTICED and os.path.exists(manifest):
        missing = [f for f in [*artifacts(wildcards), *predictions(wildcards)] if not os.path.exists(f)]
        NOTICED[archive] = [stamp(archive, "lost", manifest)] if missing else []
    return NOTICED.get(archive, [])
