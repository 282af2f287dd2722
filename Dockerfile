# Two images from one recipe: `--target service` (default) serves, `--target training` learns prompts.
#
# pip takes packages from its usual index, whose Linux torch carries CUDA (about 5 GB). For a small CPU image name an index that has CPU builds of the
# pinned torch: --build-arg PIP_EXTRA_INDEX_URL=... (deploy/README.md).

FROM python:3.11-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# The dependencies are a layer of their own: with empty packages in place of ours, a change of code does not install torch again.
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir robustclip prompts_store service training
RUN pip install --constraint constraints.txt '.[cpu]' && pip uninstall --yes robustclip

FROM build AS build-service
COPY . .
RUN pip install --no-deps .

FROM build AS build-training
RUN pip install --constraint constraints.txt '.[cpu,training]' && pip uninstall --yes robustclip
COPY . .
RUN pip install --no-deps .

# What both images share: no build tools, a user without rights, an empty working directory, one place to write.
FROM python:3.11-slim-bookworm AS base
RUN groupadd --gid 10001 robustclip \
    && useradd --uid 10001 --gid robustclip --home-dir /srv --no-create-home --shell /usr/sbin/nologin robustclip \
    && install --directory --owner robustclip --group robustclip /srv /var/lib/robustclip /var/lib/robustclip/prompts
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/lib/robustclip/weights \
    ROBUSTCLIP_STORE__PATH=/var/lib/robustclip/prompts
WORKDIR /srv
USER robustclip
ENTRYPOINT ["robustclip"]

FROM base AS training
COPY --from=build-training /opt/venv /opt/venv
CMD ["train", "--help"]

FROM base AS service
COPY --from=build-service /opt/venv /opt/venv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# Refuses to start without keys, since it binds every interface: add --insecure-no-auth where only a trusted network reaches it (as deploy/compose.yaml does).
CMD ["serve", "--host", "0.0.0.0"]
