/*
 * giveup.pml
 *	  Giving up, settling and counting, as a model for spin.
 *
 * lease.pml shows that the key's lock makes one step of each call on a key.
 * Here a call is one step, and what is checked is what the calls do to each
 * other: workers under lease that finish, release, reset, park, or are
 * overtaken; support that hands a parked claim out, settles what it has looked
 * at before, and forgets; and prune, which takes no lock and so looks first and
 * deletes later.
 *
 * The properties, by the numbers of the invariants in idempotency.c:
 *
 *	  I5	an attempt number is given out at most once while the claim or
 *			counter is stored, and a settled answer has none that was
 *	  I6	only the attempt whose number is stored writes
 *	  I7	nobody calls the other service while the claim is not due, or parked
 *	  I12	resolve overwrites no answer that a worker has stored since its
 *			caller looked; whoever saw a claim does not ask to correct
 *
 * due and IS_PARKED stand for rules_is_due() and is_parked() of src/rules.c.
 *
 * Each of these takes out one rule, and spin must find the damage:
 *
 *	  RESOLVE_SAME_NUMBER	a settled claim keeps its attempt number
 *	  RESOLVE_BLIND			resolve ignores the number that its caller saw
 *	  RESOLVE_ALWAYS		resolve replaces a finished answer unasked
 *	  PARK_HANDED_OUT		a parked claim may be taken
 *	  RELEASE_NOT_BINDING	a released claim may be taken before it is due
 *	  RESET_TO_ONE			a counter is begun at 1 again
 *	  FORGET_TO_NOTHING		forget leaves no counter
 *	  PRUNE_BLIND			prune does not repeat its condition
 *
 * Portions Copyright (c) 2026, the idempotency developers
 */

#define WORKERS 2

mtype = {absent, claim, counter, finished};

/* What is stored. */
mtype stored = absent;
byte attempt;
bool live, due, parked, ended;
bool old;						/* a counter that no worker can depend on */

/* What the properties are about.  No step of the protocol reads these. */
bool given[16];					/* numbers given out */
byte answer;					/* which answer is stored, each has its own */
bool held_back, unknown;

byte mine[WORKERS + 1];			/* the number each worker holds, the last is support's */

/* Mishaps that are still to come, or not. */
byte releases = 1, resets = 1, parks = 1, stalls = 2, forgets = 1, resolves = 2, retries = 1, prunes = 1;

#ifdef PARK_HANDED_OUT
#define IS_PARKED false
#else
#define IS_PARKED parked
#endif
#ifdef RELEASE_NOT_BINDING
#define IS_DUE true
#else
#define IS_DUE due
#endif

#ifdef RESOLVE_BLIND
#define IS_AS_SEEN true
#else
#define IS_AS_SEEN (attempt == seen)
#endif
#ifdef RESOLVE_ALWAYS
#define MAY_CORRECT IS_AS_SEEN
#else
#define MAY_CORRECT (seen_stored == finished && IS_AS_SEEN)
#endif
#ifdef RESOLVE_SAME_NUMBER
#define SETTLED_NO attempt
#else
#define SETTLED_NO (attempt + 1)
#endif

#define MAY_TAKE (stored == absent || stored == counter || (stored == claim && !live && IS_DUE && !IS_PARKED))
#define OWN (stored == claim && attempt == mine[me] && !ended)

inline give_out()
{
	if
	:: stored == absent -> attempt = 1
#ifdef RESET_TO_ONE
	:: stored == counter -> attempt = 1
	:: stored == claim -> attempt++
#else
	:: else -> attempt++
#endif
	fi;
	assert(!given[attempt]);	/* I5 */
	given[attempt] = true;
	stored = claim; live = true; due = true; parked = false; ended = false; old = false;
	mine[me] = attempt
}

inline answer_with(n)
{
	stored = finished; attempt = n; live = false; parked = false; ended = true;
	held_back = false; unknown = false;
	answer++
}

inline leave_counter()
{
	stored = counter; live = false; parked = false; ended = true; due = true; old = false;
	held_back = false; unknown = false
}

/* What a worker does with the attempt that it has got. */
inline work()
{
	atomic { assert(!(OWN && (held_back || unknown))) };	/* I7: it calls the other service */
	if
	:: atomic { OWN -> answer_with(attempt) }
	:: atomic { OWN && releases > 0 -> releases--; live = false; due = false; ended = true; held_back = true }
	:: atomic { OWN && resets > 0 -> resets--; leave_counter() }
	:: atomic { stored == claim && attempt == mine[me] && parks > 0 ->
		parks--; live = false; due = true; parked = true; ended = true; unknown = true }
	:: atomic { !OWN -> skip }					/* refused */
	:: atomic { OWN && stalls > 0 -> stalls--; live = false }	/* dies: its lease ends */
	fi;
	mine[me] = 0
}

proctype worker(byte me)
{
	do
	:: atomic { MAY_TAKE -> give_out() }; work()
	:: stored == finished -> break
	:: timeout -> break
	od
}

proctype clock()
{
end:
	do
	:: atomic { stored == claim && live && stalls > 0 -> stalls--; live = false }
	:: atomic { stored == claim && !due -> due = true; held_back = false }
	:: atomic { stored == counter && !old && mine[0] == 0 && mine[1] == 0 && mine[2] == 0 -> old = true }
	od
}

proctype support(byte me)
{
	byte seen, seen_answer;
	mtype seen_stored;

end:
	do
	:: atomic { resolves > 0 -> resolves--; seen = attempt; seen_answer = answer; seen_stored = stored };
		/* Reconciling takes its time: anything may come in between. */
		if
		:: atomic { stored == finished && MAY_CORRECT -> assert(seen_answer == answer); answer_with(attempt) }	/* I12 */
		:: atomic { stored == claim && !live && IS_AS_SEEN ->
			assert(attempt == seen && !given[SETTLED_NO]); answer_with(SETTLED_NO) }	/* I12, I5 */
		:: atomic { (stored == absent || stored == counter) && attempt == seen -> answer_with(attempt + 1) }
		:: skip
		fi
	:: atomic { retries > 0 && stored == claim && !live ->
		retries--; held_back = false; unknown = false; give_out() };
		work()
	:: atomic { forgets > 0 && stored == claim -> forgets--;
#ifdef FORGET_TO_NOTHING
		leave_counter(); stored = absent; attempt = 0
#else
		leave_counter()
#endif
		}
	od
}

proctype prune()
{
	byte i;

end:
	do
	:: atomic { prunes > 0 && stored == counter && old -> prunes-- };
		atomic {
#ifdef PRUNE_BLIND
			if
			:: stored == claim -> stored = absent; attempt = 0
			:: stored == counter ->
#else
			if
			:: stored == counter && old ->
#endif
				stored = absent; attempt = 0;
				i = 0;
				do
				:: i < 16 -> given[i] = false; i++
				:: else -> break
				od
			:: else -> skip
			fi
		}
	od
}

init
{
	atomic { run worker(0); run worker(1); run support(2); run clock(); run prune() }
}
