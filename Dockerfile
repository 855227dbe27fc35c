FROM condaforge/miniforge3:latest
LABEL io.github.snakemake.containerized="true"
LABEL io.github.snakemake.conda_env_hash="5002067bb62b6b3150f9f7776593c328d8556ad2ff0d9461868f6420874122a0"
# Conda environment:
#   source: envs/data.yaml
#   prefix: /conda-envs/118e7a0f495820b2c819aea51c215c22
#   # Everything that touches no tensor.
#   channels:
#     - conda-forge
#   dependencies:
#     - python =3.11
#     - click >=8.1
#     - jsonschema >=4.20
#     - nibabel >=5.2
#     - numpy >=1.26
#     - pyyaml >=6
#     - rocrate >=0.13
#     - scikit-learn >=1.4
#     - tqdm >=4.66
#     - pip
#     - pip:
#         - ancpbids>=0.4
RUN mkdir -p /conda-envs/118e7a0f495820b2c819aea51c215c22
COPY envs/data.yaml /conda-envs/118e7a0f495820b2c819aea51c215c22/environment.yaml
# Conda environment:
#   source: envs/onnx.yaml
#   prefix: /conda-envs/10e1b8575cf89fc012713e82ecd16f58
#   # The exports on request: ONNX beside what envs/torch.yaml has.
#   channels:
#     - conda-forge
#   dependencies:
#     - python =3.11
#     - click >=8.1
#     - jsonschema >=4.20
#     - nibabel >=5.2
#     - numpy >=1.26
#     - pyyaml >=6
#     - tqdm >=4.66
#     - pytorch =2.*
#     - onnx >=1.16
#     - onnxruntime >=1.18
#     - onnxscript >=0.2
#     - pip
#     - pip:
#         - monai[ignite]==1.6.1
RUN mkdir -p /conda-envs/10e1b8575cf89fc012713e82ecd16f58
COPY envs/onnx.yaml /conda-envs/10e1b8575cf89fc012713e82ecd16f58/environment.yaml
# Conda environment:
#   source: envs/torch.yaml
#   prefix: /conda-envs/4601bdf27a3c98689c535a9ad08098b7
#   # Training, evaluation and export.
#   channels:
#     - conda-forge
#   dependencies:
#     - python =3.11
#     - click >=8.1
#     - jsonschema >=4.20
#     - nibabel >=5.2
#     - numpy >=1.26
#     - pyyaml >=6
#     - tqdm >=4.66
#     - pytorch =2.*
#     - tensorboard >=2.16
#     - pip
#     - pip:
#         - monai[ignite]==1.6.1
RUN mkdir -p /conda-envs/4601bdf27a3c98689c535a9ad08098b7
COPY envs/torch.yaml /conda-envs/4601bdf27a3c98689c535a9ad08098b7/environment.yaml

RUN conda env create --prefix /conda-envs/118e7a0f495820b2c819aea51c215c22 --file /conda-envs/118e7a0f495820b2c819aea51c215c22/environment.yaml && \
    conda env create --prefix /conda-envs/10e1b8575cf89fc012713e82ecd16f58 --file /conda-envs/10e1b8575cf89fc012713e82ecd16f58/environment.yaml && \
    conda env create --prefix /conda-envs/4601bdf27a3c98689c535a9ad08098b7 --file /conda-envs/4601bdf27a3c98689c535a9ad08098b7/environment.yaml && \
    conda clean --all -y
