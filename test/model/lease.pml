/*
 * lease.pml
 *	  The protocol of one key under lease, as a model for spin.
 *
 * Workers begin an attempt, under lease or in one transaction, call out,
 * record each phase together with its checkpoint, and finish.  Whoever writes
 * takes the key's lock, holds it to the end of the transaction, reads the
 * claim after that, and compares the attempt's number.
 *
 * Anything may come in between: a worker or the whole server dies at any
 * step, a lease ends under a worker that is still at work, a transaction
 * fails and is tried again, an attempt is released.  A worker that died
 * begins again, as the client's retry or a batch on idempotent_resume would;
 * to the claim these two are the same.
 *
 * What is checked, with the numbers of the invariants in idempotency.c:
 *
 *	  number	an attempt's number is given once, and rises (I5)
 *	  fencing	no checkpoint, release or finish of an attempt is accepted once a
 *				later attempt or a finish was (I6)
 *	  finish	at most one is accepted (I1)
 *	  work		each phase's work in the database commits once, in order (I2, I9)
 *	  progress	every run ends, with each worker answered and the key
 *				finished: no other state is without a next step, and no run is
 *				endless (pan -l: no step is marked as progress, so any cycle
 *				is found).  So from each state the claim can still be finished.
 *
 * The rules of src/rules.c stand here as conditions: MAY_BEGIN is what
 * rules_outcome() returns "started" or "recovered" for, !live a claim for which
 * rules_is_due() holds, and HOLDS_CLAIM adds to rules_is_claimed() the number
 * and rules_attempt_is_ended().  test/checks/rules tests them by cases.
 *
 * The mishaps are finitely many (a worker that always dies never finishes),
 * as given below.  What the model leaves out: time (a lease may end whenever
 * it likes, so nothing rests on its length); other keys, which share nothing
 * with this one; and prune and forget, after which a key is a new one.
 *
 * A model is worth what it can find.  Each of these takes out one part of the
 * protocol, and spin must then find the damage:
 *
 *	  NO_FENCING	the attempt's number is not compared (I6)
 *	  NO_LOCK		the key's lock is not taken (I3)
 *	  SHORT_LOCK	the lock is given back before the transaction ends (I3)
 *	  OLD_SNAPSHOT	the claim is read with a snapshot older than the lock (I4)
 *	  SPLIT_WORK	a phase's work commits before its checkpoint does
 *	  NO_TAKEOVER	a claim whose lease has ended is not taken over
 *
 * Portions Copyright (c) 2026, the idempotency developers
 */

#define WORKERS		3			/* written out below where spin has no loop */
#ifndef PHASES
#define PHASES		2			/* the last one commits with finish */
#endif
#ifndef CRASHES
#define CRASHES		2			/* of a worker or of the server */
#endif
#ifndef SLOW
#define SLOW		2			/* leases that end under a worker at work */
#endif
#ifndef ROLLBACKS
#define ROLLBACKS	1			/* transactions that fail and are tried again */
#endif
#ifndef RELEASES
#define RELEASES	1
#endif

/* What is committed. */
bool has_key;
bool has_claim;
byte attempt;
byte checkpoint;
bool released;
bool live;						/* the lease has not ended */

/* The key's lock. */
#define NOBODY		255
byte lock = NOBODY;

/* The workers, from outside: the attempt each believes it holds, or 0. */
byte mine[WORKERS];
bool dead[WORKERS];				/* to be noticed before the worker's next step */

/*
 * Workers are alike, so it is enough to look at the runs in which they come
 * for the first time in the order of their numbers.
 */
byte begun;

/* What the properties are about.  No step of the protocol reads these. */
byte newest;					/* the highest attempt that was accepted */
byte finishes;
byte done;						/* workers that were answered */
byte work[PHASES + 1];			/* how often each phase's work committed */

/* Mishaps that are still to come, or not. */
byte crashes = CRASHES;
byte slow = SLOW;
byte rollbacks = ROLLBACKS;
byte releases = RELEASES;

/* This attempt is accepted as the key's. */
inline accept(n)
{
	assert(n >= newest && finishes == 0);	/* I6 */
	newest = n
}

inline commit_work(p)
{
	work[p]++;
	assert(work[p] == 1);	/* I2 */
	assert(p == 1 || work[p - 1] == 1)
}

inline commit_finish()
{
	finishes++;
	has_key = true;
	has_claim = false; attempt = 0; checkpoint = 0;
	released = false; live = false
}

inline snapshot()
{
	s_has_key = has_key;
	s_has_claim = has_claim;
	s_attempt = attempt;
	s_checkpoint = checkpoint;
	s_released = released;
	s_live = live
}

/*
 * What each call on a key starts with.  It is one step, since nobody but the
 * lock's holder writes what is read.
 */
inline lock_and_read()
{
#if defined(NO_LOCK)
	atomic { snapshot() }
#elif defined(SHORT_LOCK)
	atomic { lock == NOBODY -> snapshot() }
#elif defined(OLD_SNAPSHOT)
	atomic { snapshot() };
	atomic { lock == NOBODY -> lock = me }
#else
	atomic { lock == NOBODY -> lock = me; snapshot() }
#endif
}

/* The transaction ends, either way. */
inline end_transaction()
{
	if
	:: lock == me -> lock = NOBODY
	:: else
	fi;
	s_has_key = false; s_has_claim = false; s_live = false;
	s_released = false; s_attempt = 0; s_checkpoint = 0
}

inline give_up()
{
	mine[me] = 0; number = 0; phase = 0
}

#ifdef NO_FENCING
#define HOLDS_CLAIM	(s_has_claim)
#else
#define HOLDS_CLAIM	(s_has_claim && s_attempt == number && !s_released)
#endif

#ifdef NO_TAKEOVER
#define MAY_BEGIN	(!s_has_claim)
#else
#define MAY_BEGIN	(!s_has_claim || !s_live)
#endif

proctype worker(byte me)
{
	byte number;				/* of the attempt begun */
	byte phase;					/* at work on, from 1 */

	/* What the transaction has read. */
	bool s_has_key, s_has_claim, s_released, s_live;
	byte s_attempt, s_checkpoint;

again:
	{
		/* Who was told "in progress" asks again once that may be over. */
		atomic {
			me <= begun && (has_key || !has_claim || !live) ->
			if
			:: me == begun -> begun++
			:: else
			fi
		};

		/* begin */
		lock_and_read();
		if
		:: s_has_key ->
			atomic { end_transaction() };
			goto answered		/* replayed */
		:: !s_has_key && MAY_BEGIN ->
			atomic {
				number = s_attempt + 1;
				if
				:: goto claim
				:: goto in_one_transaction
				fi
			}
		:: else ->
			atomic { end_transaction() };
			goto again			/* in progress */
		fi;

claim:
		/* The first claim or the takeover of one commits. */
		atomic {
			assert(number > newest);	/* I5 */
			accept(number);
			has_claim = true;
			attempt = number;
			released = false;
			live = true;
			mine[me] = number;
			phase = s_checkpoint + 1;
			end_transaction()
		};

call_out:
		skip;					/* with a key derived from this one */

record:
		/* The phase's own transaction: its work, and checkpoint or finish. */
#ifdef SPLIT_WORK
		atomic { commit_work(phase) };
#endif
		lock_and_read();
		if
		:: !HOLDS_CLAIM ->
			atomic { end_transaction(); give_up() };
			goto again			/* overtaken */
		:: HOLDS_CLAIM && rollbacks > 0 ->
			atomic { rollbacks--; end_transaction() };
			goto record
		:: HOLDS_CLAIM && releases > 0 ->
			atomic {
				releases--;
				accept(number);
				released = true;
				live = false;
				end_transaction();
				give_up()
			};
			goto again
		:: HOLDS_CLAIM && phase < PHASES ->
			atomic {
				accept(number);
#ifndef SPLIT_WORK
				commit_work(phase);
#endif
				checkpoint = phase;
				live = true;
				phase++;
				end_transaction()
			};
			goto call_out
		:: HOLDS_CLAIM && phase == PHASES ->
			atomic {
				accept(number);
#ifndef SPLIT_WORK
				commit_work(phase);
#endif
				commit_finish();
				end_transaction();
				give_up()
			};
			goto answered
		fi;

in_one_transaction:
		/* Nothing is written before finish, and the lock is kept until then. */
		skip;
		if
		:: rollbacks > 0 ->
			atomic { rollbacks--; end_transaction(); give_up() };
			goto again
		:: atomic {
				accept(number);
				phase = s_checkpoint + 1;
				do
				:: phase <= PHASES -> commit_work(phase); phase++
				:: else -> break
				od;
				commit_finish();
				end_transaction();
				give_up()
			};
			goto answered
		fi
	} unless {
		dead[me];
		atomic { end_transaction(); give_up(); dead[me] = false };
		goto again
	};

answered:
	assert(has_key);
	done++
}

/* A worker that holds nothing leaves no trace when it dies. */
#define HOLDS(w) (lock == w || mine[w] != 0)

#define HOLDER_AT_WORK \
	(mine[0] == attempt || mine[1] == attempt || mine[2] == attempt)

/* Crashes, and the ends of leases. */
proctype fate()
{
end:
	do
	:: atomic { crashes > 0 && HOLDS(0) -> crashes--; dead[0] = true }
	:: atomic { crashes > 0 && HOLDS(1) -> crashes--; dead[1] = true }
	:: atomic { crashes > 0 && HOLDS(2) -> crashes--; dead[2] = true }
	:: atomic {					/* the server */
			crashes > 0 && (HOLDS(0) || HOLDS(1) || HOLDS(2)) ->
			crashes--;
			dead[0] = HOLDS(0); dead[1] = HOLDS(1); dead[2] = HOLDS(2)
		}
	:: atomic { has_claim && live && !HOLDER_AT_WORK -> live = false }
	:: atomic {
			has_claim && live && HOLDER_AT_WORK && slow > 0 ->
			slow--;
			live = false
		}
	od
}

init
{
	byte i;

	atomic {
		run fate();
		run worker(0);
		run worker(1);
		run worker(2)
	};

	done == WORKERS;
	assert(has_key && finishes == 1);
	i = 1;
	do
	:: i <= PHASES -> assert(work[i] == 1); i++
	:: else -> break
	od
}
