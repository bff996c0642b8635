#!lua flags=allow-oom
-- wake: puts back a marker that was popped for nobody
-- uses: record, effects
--
-- returns  nothing
-- again    there is at most one marker

wake = true
apply()
return 0
