# The ways to build, test and try Brig. Each target does its own set-up; `make test` is what CI runs.

# The helpers are static, so that starting one costs no dynamic linking and no library of the host is mapped.
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
DIST := target/dist

.PHONY: setup build test test-vm fuzz demo bench isolation install uninstall clean

setup:
	@deploy/setup.sh

# All four binaries end up beside each other in target/dist, where they find each other.
build: setup
	cargo build --release --bin brigd --bin brig
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile helper --no-default-features \
		--target $(HOST) --bin brig-monitor --bin brig-sandbox
	@mkdir -p $(DIST)
	@install -m 0755 target/release/brigd target/release/brig $(DIST)/
	@install -m 0755 target/$(HOST)/helper/brig-monitor target/$(HOST)/helper/brig-sandbox $(DIST)/

test: setup
	@tests/run.sh

# The integration tests on cgroup v2 and under systemd, each in an emulated machine. ONLY=systemd takes one of the two.
test-vm:
	@for flavour in $(or $(ONLY),cgroup-v2 systemd); do tests/vm/run.sh $$flavour "$(FILTER)" || exit 1; done

# SECONDS for each target of tests/fuzz, or for the one that TARGET names. What is found stays in target/fuzz/corpus.
FUZZ_TARGETS := spdy_frames spdy_connection websocket_channels
fuzz: setup
	@for target in $(or $(TARGET),$(FUZZ_TARGETS)); do \
		mkdir -p target/fuzz/corpus/$$target; \
		cargo fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer none $$target \
			$(CURDIR)/target/fuzz/corpus/$$target $(CURDIR)/tests/fuzz/corpus/$$target \
			-- -max_total_time=$(or $(SECONDS),600) -print_final_stats=1 || exit 1; \
	done

# IMAGE=name pulls from a registry; without it the machine's own busybox becomes an image.
demo: build
	@deploy/demo.sh $(IMAGE)

# ONLY="life crowd" takes only those parts.
bench: build
	@tests/run.sh bench $(ONLY)

# What a container of each handler can reach of the host, and which of the known ways out are shut.
isolation: setup
	@tests/run.sh isolation

install: build
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" deploy/install.sh install

uninstall:
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" deploy/install.sh uninstall

clean:
	cargo clean
