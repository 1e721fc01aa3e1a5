# Everything a developer or CI does with the project. `make` alone lists it.
#
# Every Swift command goes through scripts/swift, which always gives the same flags, so that nothing is built twice.

swift_files := Package.swift Sources Tests Examples/Package.swift Examples/Sources
libtorch := $(if $(SUBQUADRATIC_DEPS),$(SUBQUADRATIC_DEPS),.deps)/libtorch

# Warnings are errors in a build folder of their own, so that switching between this and `make test` rebuilds nothing.
# CI sets the variable for everything and then needs one folder only.
ifeq ($(SUBQUADRATIC_WARNINGS_AS_ERRORS),1)
strict_build := scripts/swift build --build-tests
else
strict_build := SUBQUADRATIC_WARNINGS_AS_ERRORS=1 scripts/swift build --build-tests --scratch-path .build/strict
endif

.PHONY: help setup build demo test test-setup lint strict format docs examples clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Find or download LibTorch; done by the others when it is needed
	@scripts/bootstrap

build: setup ## Build .build/release/subq, which runs from any folder
	@scripts/swift build -c release --product subq
	@echo "Built .build/release/subq."

demo: build ## Train a small language model, evaluate it and let it write: the whole in a few minutes
	@rm -rf runs/demo
	.build/release/subq train Recipes/demo.yaml --set "data.path=$(libtorch)/include" --out runs/demo --seed 1
	.build/release/subq evaluate runs/demo
	.build/release/subq generate runs/demo --prompt "#include <ATen/" --tokens 300 --seed 1
	@echo
	@echo "The run lies in runs/demo; go on with: .build/release/subq generate runs/demo --prompt TEXT"

test: setup ## Run all tests
	@scripts/swift test

test-setup: ## Test the set-up script itself
	@scripts/test-bootstrap

lint: setup ## Check format and house rules, and build with warnings as errors
	@scripts/check-style $(swift_files)
	@$(strict_build)

format: ## Format the Swift code
	@swift format --in-place --recursive $(swift_files)

docs: setup ## Build the documentation, an archive for each library
	@scripts/build-docs $(documented)

examples: setup ## Build and run Examples, a package that depends on this one through git, at the current commit
	@scripts/test-examples

clean: ## Remove what was built; LibTorch and runs stay
	@rm -rf .build Examples/.build

documented := Torch TorchNN TorchOptimizers SequenceMixers SequenceModels Datasets Inference Training
