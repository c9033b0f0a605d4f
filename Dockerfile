# The service of examples/service.py; docs/service.md says how to build and run it, and how for a GPU.
ARG BASE=python:3.12-slim

FROM ${BASE} AS base
# of Debian or Ubuntu, needed when the service runs; Python and what it needs to make an environment, if the base has none
ARG PACKAGES=
RUN command -v python3 >/dev/null || needed="python3 python3-venv"; \
    if [ -n "$needed$PACKAGES" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends $needed $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi

FROM base AS build
# wheels of PyTorch for CPUs; empty for those of PyPI, which contain CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# packages that the service does not need: Triton compiles for GPUs only
ARG WITHOUT=triton
RUN headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
    [ -f "$headers/Python.h" ] || needed=python3-dev; \
    apt-get update && apt-get install --yes --no-install-recommends g++ $needed && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/stm_fast/bin:$PATH PIP_CONSTRAINT=/source/constraints.txt PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY constraints.txt pyproject.toml ./
RUN python3 -m venv /opt/stm_fast \
    && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], "torch", sep="\n")' \
      > requires.txt \
    && pip install --requirement requires.txt
COPY . .
RUN STM_FAST_EXTENSION=1 pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip install "$(echo /wheels/*.whl)[service]" \
    && if [ -n "$WITHOUT" ]; then pip uninstall --yes $WITHOUT; fi

FROM base
COPY --from=build /opt/stm_fast /opt/stm_fast
COPY examples/service.py /opt/service.py
RUN useradd --uid 10001 --create-home stm_fast && install --directory --owner stm_fast /data
# uploads wait in TMPDIR, next to the jobs
ENV PATH=/opt/stm_fast/bin:$PATH PYTHONUNBUFFERED=1 TMPDIR=/data
USER stm_fast
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as http; http.urlopen('http://127.0.0.1:8000/health', timeout=9)"]
ENTRYPOINT ["python", "/opt/service.py", "--host", "0.0.0.0", "--folder", "/data"]
