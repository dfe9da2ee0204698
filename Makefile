VENV ?= .venv
TREE := .mypy_cache/tree/fastvlm_mlx

types:
	rm -rf $(TREE) && mkdir -p $(TREE) && ln -s $(CURDIR)/fastvlm_mlx/* $(TREE)/ && ln -s $(CURDIR)/convert $(TREE)/convert
	cd .mypy_cache/tree && MYPYPATH=. mypy --config-file $(CURDIR)/pyproject.toml -p fastvlm_mlx
