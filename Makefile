# idempotency: build, install, installcheck, by PGXS.
#
#   make && sudo make install
#   make installcheck          needs a running server, pgTAP and IPC::Run
#
# PG_CONFIG chooses the server: make PG_CONFIG=/usr/lib/postgresql/17/bin/pg_config

SRC := $(patsubst %/,%,$(dir $(firstword $(MAKEFILE_LIST))))

EXTENSION  = idempotency
# The version stands in the control file alone.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" $(SRC)/$(EXTENSION).control)

MODULE_big = idempotency
OBJS       = idempotency.o $(patsubst $(SRC)/%.c,%.o,$(sort $(wildcard $(SRC)/src/*.c)))
DATA       = $(patsubst $(SRC)/%,%,$(wildcard $(SRC)/idempotency--*.sql))
PGFILEDESC = "idempotency - retries that are safe, in the transaction that does the work"

PG_CPPFLAGS = -DIDEMPOTENCY_VERSION='"$(EXTVERSION)"'
# Two mistakes that only old compilers take for warnings. The server's functions change between versions, and a call in the
# form of another version must not compile. WERROR=-Werror makes errors of all others.
PG_CFLAGS   = -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare \
              -Werror=int-conversion -Werror=incompatible-pointer-types $(WERROR)

# A server loads all libraries into one space of names, where the first that has a name wins. Nothing of ours is there but
# what PostgreSQL calls, and our own calls do not go there. 16 hides symbols by itself.
PG_CFLAGS  += -fvisibility=hidden
ifneq ($(shell uname -s),Darwin)
SHLIB_LINK  = -Wl,-Bsymbolic
endif

# Every kind of test lives under test/; a new file is found by itself.
REGRESS        = $(sort $(patsubst $(SRC)/test/sql/%.sql,%,$(wildcard $(SRC)/test/sql/*.sql)))
REGRESS_OPTS   = --inputdir=$(SRC)/test --load-extension=pgtap --encoding=UTF8
ISOLATION      = $(sort $(patsubst $(SRC)/test/specs/%.spec,%,$(wildcard $(SRC)/test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=$(SRC)/test
TAP_TESTS      = 1
PROVE_TESTS    = $(SRC)/test/t/*.pl

EXTRA_CLEAN = output_iso results regression.diffs regression.out tmp_check

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Older headers lack files, of which a compiler would tell instead.
ifeq ($(shell test $(MAJORVERSION) -ge 15 || echo old),old)
$(error idempotency needs PostgreSQL 15 or later, and $(PG_CONFIG) is of $(MAJORVERSION))
endif

# In a VPATH build the folder of the object files is not there yet. By its full name, since make would take the one of the
# sources for it.
$(OBJS) $(OBJS:.o=.bc): | $(CURDIR)/src
$(CURDIR)/src:
	@mkdir -p $@

# Without dependency tracking a changed header rebuilds everything: it is quick.
$(OBJS) $(OBJS:.o=.bc): $(wildcard $(SRC)/src/*.h)

# The zip for PGXN, of the last commit. PGXN wants three numbers where PostgreSQL's custom is two: 1.0 is its 1.0.0.
DISTNAME = $(EXTENSION)-$(EXTVERSION)$(if $(word 3,$(subst ., ,$(EXTVERSION))),,.0)

.PHONY: dist
dist:
	git archive --format=zip --prefix=$(DISTNAME)/ -o $(DISTNAME).zip HEAD

# The SQL edition, from the install script and sql/functions.sql.
.PHONY: sql
sql:
	$(SRC)/sql/generate
