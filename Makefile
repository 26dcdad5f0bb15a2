# jointwise. `make demo`: the whole story on the bundled model. `make test`: every test. Both install a Vulkan driver where none is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test build driver lint clean

TARGET := $(or $(CARGO_TARGET_DIR),target)

help:
	@echo "make demo    look at the bundled model, tune it with DPO and JPO, look again: table and report.html"
	@echo "make test    every test, in release mode"
	@echo "make build   the program: $(TARGET)/release/jointwise"
	@echo "make lint    cargo fmt --check, clippy with warnings as errors"
	@echo "make clean   removes $(TARGET)"

demo: build
	.ci/with-driver $(TARGET)/release/jointwise demo

test: driver
	.ci/with-driver cargo test --release

build: driver
	cargo build --release

# A Vulkan loader and a driver, through apt, only where they are missing. Metal and DX12 need neither.
driver:
	@.ci/driver

lint:
	cargo fmt --check
	cargo clippy -- -D warnings
	cargo clippy --all-targets -- -D warnings -A clippy::unwrap_used # tests may unwrap

clean:
	cargo clean
